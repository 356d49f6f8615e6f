-- What an applicant states, known when the application is received.
--
-- Left out on purpose:
--   * personal_status_and_sex and foreign_worker: to decide by them is unlawful in many places, and the codes of the former
--     cannot tell single women from married men;
--   * telephone, which says nothing today.
-- The age is a feature, as the original table has it; where it must not be, declare `age: {feature: false}`.

SELECT
    applicant_id,
    applied_at,
    status_of_existing_checking_account AS checking_account,
    duration_in_month AS duration,
    credit_history,
    purpose,
    credit_amount,
    credit_amount / duration_in_month AS instalment,
    savings_account_and_bonds AS savings,
    present_employment_since AS employed_since,
    installment_rate_in_percentage_of_disposable_income AS instalment_rate,
    other_debtors_or_guarantors AS guarantors,
    present_residence_since AS resident_since,
    property,
    age_in_years AS age,
    CASE WHEN age_in_years <= 25 THEN 'up to 25' ELSE 'over 25' END AS age_group,
    other_installment_plans AS other_plans,
    housing,
    number_of_existing_credits_at_this_bank AS credits_here,
    job,
    number_of_people_being_liable_to_provide_maintenance_for AS dependants
FROM applicants
WHERE applied_at >= $partition_start
  AND applied_at < $partition_end
